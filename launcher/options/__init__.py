"""Options: declared once, read from three places; endpoints and backends, which they name."""
