"""What is written as JSON: one frozen dataclass per schema, for writers and readers alike.

The ground floor: records know neither networks nor runtimes nor pages, and everybody may
import them.
"""
