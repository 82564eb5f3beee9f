"""Networks: their description, their parameters, the one pass through their layers, and what builds them."""
