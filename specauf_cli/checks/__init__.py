"""What can break a drafter before it is trained or measured, one small function per trap."""
