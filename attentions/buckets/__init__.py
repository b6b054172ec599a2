"""Selection by hash codes: hash families, bucket windows, softmax attention over them, and decoding."""
