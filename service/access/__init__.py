"""Who may come in: keys, access tokens and their claims, origins. Both public ports ask here; it knows neither."""
