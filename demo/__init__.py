"""The whole loop on one machine, by the parts' own commands; imports none of the parts."""
