"""The methods that Skillet is compared with, each on Skillet's own parts, and the comparison itself."""
