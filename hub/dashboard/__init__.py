"""The line dashboard: pages for people, a read API for programs, the release repository for devices."""
