"""`--shape auto` and `--cut auto`: what is asked, the plan that is chosen, and where it is kept."""
