"""python deploy/bucket.py s3://BUCKET/PREFIX [--endpoint-url URL]: makes the bucket, unless it is there.

Credentials and region come by boto3's own chain. By itself, so that the image of the front end can carry and run it.
"""

from __future__ import annotations

import argparse
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError


def make(url: str, endpoint_url: str | None) -> str:
    """The bucket's name. Raises ValueError for what is not s3://BUCKET..., and botocore's exceptions as they are."""
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc:
        raise ValueError(f"not s3://BUCKET/PREFIX: {url!r}")
    # By path: a store in a container has no name of its own for each bucket.
    client = boto3.client("s3", endpoint_url=endpoint_url, config=Config(s3={"addressing_style": "path"}))
    try:
        client.head_bucket(Bucket=parts.netloc)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        region = client.meta.region_name
        elsewhere = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        client.create_bucket(Bucket=parts.netloc, **elsewhere)
    return parts.netloc


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--endpoint-url")
    given = parser.parse_args()
    print(f"the bucket {make(given.url, given.endpoint_url)} is there")
