"""Programs to start from: copy one and put your own robot in."""
