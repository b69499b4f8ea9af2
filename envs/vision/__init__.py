"""Images: what is to be seen in them."""
