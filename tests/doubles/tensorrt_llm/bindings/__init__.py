"""The bindings of the double."""
