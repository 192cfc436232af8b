"""Questions asked, answers judged, verdicts counted."""
