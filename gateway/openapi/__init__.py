"""The document that describes the whole HTTP interface."""
