"""The service: adapting policies over REST. API processes hold no torch; the learner is a process of its own."""
