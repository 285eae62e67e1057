"""What a person looks at: charts, films and pages."""
