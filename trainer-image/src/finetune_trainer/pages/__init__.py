"""Reports as pages: one self-contained HTML file each, without scripts and without anything from elsewhere.

`page.render(template, **values)` makes a page, `charts` computes the pictures that `charts.html` draws, and every
text of a user goes through autoescape or `shown`. A page's template extends `frame.html`.
"""
