"""What a recipe asks for beyond its rows, checked; what a plan holds, takes and says. Plain data, without torch."""
