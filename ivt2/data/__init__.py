"""Reading, decoding, sampling, ordering and writing data; nothing here knows Lightning."""
