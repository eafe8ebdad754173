"""A language model that decides question by question: it reads what is left and announces a level."""
