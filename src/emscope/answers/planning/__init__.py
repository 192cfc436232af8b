"""How large a study has to be, before anything is trained."""
