"""How a rank comes to a round: the store that all meet by, what nodes tell, who is here."""
