"""Views, panels and pages; in a browser what only a browser can show."""
