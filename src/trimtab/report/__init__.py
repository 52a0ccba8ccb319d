"""Renderers: values in, text for a reader or one JSON object out.  No value renders itself."""
