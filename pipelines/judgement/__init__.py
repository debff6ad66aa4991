"""What the gate holds a candidate against: a module for each kind of rule, pure functions of what was measured."""
