"""Pictures: shapes on a flat ground as SVG or PNG, and curves of them."""
