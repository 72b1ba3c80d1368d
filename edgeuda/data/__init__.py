"""Images, labels and where they come from (NumPy and OpenCV only)."""
