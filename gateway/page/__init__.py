"""The web page that the gateway serves at /, and its files."""
