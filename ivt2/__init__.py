"""InternVideo2 as one Lightning experiment system."""
