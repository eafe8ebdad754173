"""What is true: optimal values and policies, exact evaluation, the clairvoyant's score."""
