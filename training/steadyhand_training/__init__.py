"""What runs on the workstation: ingest, journal, replay, learner, classifier correction, publishing, evaluation."""
