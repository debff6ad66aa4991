"""Past one machine, on paper: what many retrains on many cards take, and what saturates first."""
