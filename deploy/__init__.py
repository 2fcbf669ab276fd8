"""The production set-up: what docker-compose.yml mounts, and the same processes without containers."""
