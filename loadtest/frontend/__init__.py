"""Load as a recommender's front end makes it, for Locust: visits that rank, watch, tell of it and rank again."""
