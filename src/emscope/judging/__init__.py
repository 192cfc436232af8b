"""Judging answers: rubrics, what a judge's reply says, and judges to ask."""
