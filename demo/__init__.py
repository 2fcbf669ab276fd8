"""`make demo`: the whole service on made-up RGB-D scenes, from rendering to the printed table."""
