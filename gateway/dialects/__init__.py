"""The dialects that clients speak: each is translated into one kind of request, and written from
one stream of events."""
