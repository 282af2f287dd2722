"""The contract between training and service: prompt sets as data, and the store that keeps their versions."""
