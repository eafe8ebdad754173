"""Parts of `roi serve`: reading and writing chat completions, who may ask, clients that wait or leave."""
