//! One page of all runs. It needs nothing from outside and no script; it follows the reader's choice of light or dark.
//!
//! The page is also well-formed XML. Pictures keep their size and scroll inside their own boxes on narrow screens.

use super::svg::{Canvas, Escaped};
use super::{Chart, Run, lanes, legend, plan_text, sweep};
use std::fmt::{self, Display, Write as _};

/// Room for a scroll bar and margins on a screen of 1200 pixels. Units: pixels.
const PICTURE_WIDTH: f64 = 1112.0;

const STYLE: &str = "
:root{color-scheme:light dark}
body{margin:0 auto;max-width:1112px;padding:16px 24px 48px;background:#fff;color:#1a1a1a;
font:16px/1.5 'Helvetica Neue',Helvetica,Arial,'DejaVu Sans',sans-serif;overflow-wrap:break-word}
h1{font-size:1.75rem;line-height:1.2;margin:16px 0 4px}
h2{font-size:1.25rem;line-height:1.3;margin:48px 0 4px;padding-top:16px;border-top:1px solid #ccc}
p{margin:4px 0 12px}
.about{color:#555}
.legend{display:flex;flex-wrap:wrap;gap:8px 24px;margin:8px 0;padding:0;list-style:none}
.legend li{display:flex;align-items:center;gap:8px}
.legend svg{flex:none}
.box{overflow-x:auto;margin:8px 0 16px}
.box:focus-visible{outline:2px solid #00538a}
.box svg{display:block}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
caption{text-align:left;color:#555}
th,td{padding:4px 12px 4px 0;text-align:right;border-bottom:1px solid #ccc;white-space:nowrap}
th:first-child{text-align:left;white-space:normal}
tbody th{font-weight:normal}
@media (max-width:700px){.legend li:first-child{flex-basis:100%}}
.patterns{position:absolute}
";

const STYLE_DARK: &str = "
body{background:#16191d;color:#ececec}
.about,caption{color:#b0b5ba}
h2,th,td{border-color:#3d434a}
.box:focus-visible{outline-color:#7cc8f5}
";

/// Forbids the page everything that would come from outside.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// The page.
pub(crate) fn html(chart: &Chart<'_>) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = write_page(&mut page, chart);
    page
}

fn write_page(page: &mut String, chart: &Chart<'_>) -> fmt::Result {
    let (title, light, dark) = (Escaped(&chart.title), legend::LIGHT, legend::DARK);
    write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{}\"/>\n\
         <link rel=\"icon\" href=\"data:,\"/>\n<title>{title}</title>\n\
         <style>{STYLE}{light}@media (prefers-color-scheme: dark){{{STYLE_DARK}{dark}}}</style>\n</head>\n<body>\n\
         <svg class=\"patterns\" xmlns=\"http://www.w3.org/2000/svg\" width=\"0\" height=\"0\" \
         aria-hidden=\"true\">{}</svg>\n<main>\n<h1>{title}</h1>\n",
        Escaped(POLICY),
        legend::PATTERNS,
    )?;
    paragraph(page, "about", &chart.subtitle)?;
    for sentence in &chart.sentences {
        paragraph(page, "says", sentence)?;
    }
    write_legend(page, "worker", &legend::WORKER)?;
    write_legend(page, "server", &legend::SERVER)?;
    for run in &chart.runs {
        write_run(page, run)?;
    }
    if !chart.sweep.is_empty() {
        writeln!(page, "<section>\n<h2>{}</h2>", Escaped(sweep::TITLE))?;
        let mut canvas = Canvas::default();
        let height = sweep::draw(&mut canvas, chart.sweep, PICTURE_WIDTH);
        write_box(page, sweep::TITLE, canvas.inline(sweep::TITLE, PICTURE_WIDTH, height + 8.0))?;
        page.push_str("</section>\n");
    }
    page.push_str("</main>\n<footer>\n<h2>Machine</h2>\n");
    paragraph(page, "about", &chart.machine)?;
    page.push_str("</footer>\n</body>\n</html>\n");
    Ok(())
}

fn paragraph(page: &mut String, class: &str, text: &str) -> fmt::Result {
    if text.is_empty() {
        return Ok(());
    }
    writeln!(page, "<p class=\"{class}\">{}</p>", Escaped(text))
}

/// What may be wider than the screen; it can be scrolled with the keyboard too.
fn write_box(page: &mut String, label: &str, content: impl Display) -> fmt::Result {
    let label = Escaped(label);
    writeln!(page, "<div class=\"box\" role=\"region\" tabindex=\"0\" aria-label=\"{label}\">\n{content}</div>")
}

fn write_legend(page: &mut String, lane: &str, items: &[(super::Activity, &str)]) -> fmt::Result {
    writeln!(page, "<ul class=\"legend\">\n<li><strong>{lane}</strong></li>")?;
    for &(activity, meaning) in items {
        let mut canvas = Canvas::default();
        legend::sample(&mut canvas, activity);
        let (width, height) = legend::SAMPLE;
        let sample = canvas.inline(activity.name(), width, height);
        writeln!(page, "<li>{sample}<span>{}</span></li>", Escaped(meaning))?;
    }
    page.push_str("</ul>\n");
    Ok(())
}

fn write_run(page: &mut String, run: &Run<'_>) -> fmt::Result {
    writeln!(page, "<section>\n<h2>{}</h2>", Escaped(&run.name))?;
    paragraph(page, "about", &plan_text(run.plan))?;
    let mut canvas = Canvas::default();
    let height = lanes::draw(&mut canvas, run, PICTURE_WIDTH);
    write_box(page, &run.name, canvas.inline(&run.name, PICTURE_WIDTH, height))?;
    if !run.figures.is_empty() {
        let mut table = String::from("<table>\n<thead><tr><th scope=\"col\">of the whole run</th>");
        for (name, _) in run.timelines() {
            write!(table, "<th scope=\"col\">{name}</th>")?;
        }
        table.push_str("</tr></thead>\n<tbody>\n");
        for figure in &run.figures {
            write!(table, "<tr><th scope=\"row\">{}</th>", Escaped(&figure.label))?;
            for text in [&figure.predicted, &figure.measured] {
                write!(table, "<td>{}</td>", Escaped(if text.is_empty() { "–" } else { text }))?;
            }
            table.push_str("</tr>\n");
        }
        table.push_str("</tbody>\n</table>\n");
        write_box(page, &format!("figures: {}", run.name), table)?;
    }
    page.push_str("</section>\n");
    Ok(())
}
