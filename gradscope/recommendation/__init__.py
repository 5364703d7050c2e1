"""The clipping threshold from recorded norms and verified candidates. Pure functions over a Run."""
