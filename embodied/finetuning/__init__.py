"""Fine-tuning of policies that read cameras, a sentence and own readings: stages over one run folder."""
