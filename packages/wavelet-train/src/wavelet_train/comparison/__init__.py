"""Model families side by side: on the same data, with their own tuned rates, at equal time, operations or tokens."""
