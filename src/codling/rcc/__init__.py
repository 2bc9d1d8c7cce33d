"""Reverse channel coding: sending a sample of a Gaussian by naming one of the candidates both sides can draw."""
