"""The figures of the report, and what they share with its pages: colours, keys and SVG."""
