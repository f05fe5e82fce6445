"""Pure: what a plan looks like, as plain values.

gantt: a step in time, lane by lane; foreseen, measured, or by the order of passes alone
nodes: nodes, bundles, stages, what is sent between them
trace: a Gantt chart for Perfetto

Who draws is `launcher.report.figures`; who asks is `launcher.commands.plan_picture`.
"""
