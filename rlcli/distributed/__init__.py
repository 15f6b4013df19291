"""Several processes that train one model: how they meet, exchange values and fail together."""
