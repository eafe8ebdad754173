"""Knowing before thinking: laws of cost and success predicted from a question's text.

* ``records``: a table by question: right answers, answers, tokens;
* ``features``: what a predictor reads of a text;
* ``scores``: from features to ease, gain and length of a question;
* ``predictor``: calibrated laws per tier, groups of them, files;
* ``exams``: predicted groups as a column of a table, how many of them, what they recover;
* ``quality``: log-loss, Brier score, calibration error, AUC, error of costs.
"""
