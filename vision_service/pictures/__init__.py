"""What a picture file becomes: formats, colours, transparency, and files that lack their end."""
