"""What training and serving share: the bundle format, the layout of context, and how a session explores. numpy and pydantic only."""
