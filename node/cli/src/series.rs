//! Series: a run repeated, and a matrix of choices, submitted together and summed up under one CID.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use iptl_dag::Cid;
use iptl_dag::model::series::MAX_SERIES;
use iptl_dag::model::{self, ExecutionId, Node, ResultVerdict, Series, SeriesExecution};
use iptl_wire::control::{Event, Reply, Request};
use serde_json::{Value, json};

use crate::client::{Client, unexpected};
use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::narrative::{self, Telling};
use crate::{fetch, ui};

/// How long an interrupted command waits for the answer to a submission that is under way.
const LATE_LIMIT: Duration = Duration::from_secs(2);

/// Choices that tell a run from others of its series, as they were given.
pub type Choices = BTreeMap<String, String>;

/// Takes `NAME=A,B,C` apart.
pub fn axis(text: &str) -> std::result::Result<(String, Vec<String>), String> {
    let (name, values) = text
        .split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| format!("`{text}` has no `=`; write NAME=A,B,C"))?;
    let values: Vec<String> = values.split(',').map(|value| value.trim().to_owned()).collect();
    if values.iter().any(String::is_empty) {
        return Err(format!("`{text}` has an empty value; write NAME=A,B,C"));
    }
    let distinct: BTreeSet<&String> = values.iter().collect();
    if distinct.len() < values.len() {
        return Err(format!("`{text}` has a value twice; repeat runs with `--repeat`"));
    }
    Ok((name.to_owned(), values))
}

/// Returns all combinations of the values of some names, the last name changing fastest; one without choices where
/// there are no names.
///
/// # Errors
///
/// Says where a name is given twice, or where there are more runs, each repeated so often, than a series may have.
pub fn combinations(matrix: &[(String, Vec<String>)], repeat: u32) -> Result<Vec<Choices>> {
    let names: BTreeSet<&String> = matrix.iter().map(|(name, _)| name).collect();
    if names.len() < matrix.len() {
        return Err(Error::usage(
            "run.matrix",
            "a name stands in two `--matrix`",
            "write all its values in one: `--matrix NAME=A,B,C`",
        ));
    }
    let sizes = matrix.iter().map(|(_, values)| values.len());
    let count = sizes.chain([repeat as usize]).try_fold(1usize, usize::checked_mul);
    if count.is_none_or(|count| count > MAX_SERIES) {
        return Err(Error::usage(
            "run.matrix",
            format!("the series would have more than {MAX_SERIES} executions"),
            "give fewer values, or repeat less",
        ));
    }
    let mut all = vec![Choices::new()];
    for (name, values) in matrix {
        let with = |choices: &Choices, value: &String| {
            let mut choices = choices.clone();
            choices.insert(name.clone(), value.clone());
            choices
        };
        all = all.iter().flat_map(|choices| values.iter().map(move |value| with(choices, value))).collect();
    }
    Ok(all)
}

/// Submits every run so often, all of them or none, and follows all to the end.
pub async fn run(
    ctx: &Context,
    client: &Client,
    runs: Vec<(Choices, Cid)>,
    repeat: u32,
    priority: i32,
    detach: bool,
) -> Result {
    let mut series = Series { executions: Vec::new() };
    // Half a series is none: nobody would know of it.
    let begun = match begin(ctx, client, &runs, repeat, priority, &mut series).await {
        Ok(Some(begun)) => begun,
        Ok(None) => {
            return match withdraw(ctx, client, &series).await {
                Some(left) => Err(Error::broken("run.series", left, "`iptl cancel` ends one of them")),
                None => Ok(Exit::Interrupted),
            };
        }
        Err(mut error) => {
            if let Some(left) = withdraw(ctx, client, &series).await {
                error.message = format!("{}; {left}", error.message);
            }
            return Err(error);
        }
    };
    if detach {
        return submitted(ctx, &begun, &series);
    }
    let exit = follow(ctx, client, &begun, series).await?;
    if exit != Exit::Interrupted {
        client.call_all(Request::Unpin { root: begun }).await?;
    }
    Ok(exit)
}

/// Submits every run so often, and keeps the series: from then on it can be watched and cancelled by whoever has its CID,
/// also where this command ends. Returns none where that was interrupted; `series` has what was submitted.
async fn begin(
    ctx: &Context,
    client: &Client,
    runs: &[(Choices, Cid)],
    repeat: u32,
    priority: i32,
    series: &mut Series,
) -> Result<Option<Cid>> {
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    for repetition in 1..=repeat {
        for (choices, run) in runs {
            let submitting = ctx.waiting("submitting", client.submit(*run, priority));
            tokio::pin!(submitting);
            let (submitted, interrupted) = tokio::select! {
                submitted = &mut submitting => (Some(submitted?), false),
                // What the node has just said is heard; what it says to nobody it withdraws itself.
                _ = &mut interrupt => (tokio::time::timeout(LATE_LIMIT, submitting).await.ok().transpose()?, true),
            };
            series.executions.extend(submitted.map(|(execution, _)| SeriesExecution {
                execution,
                run: *run,
                choices: choices.clone(),
                repetition,
                result: None,
                verdict: None,
                failure: None,
            }));
            if interrupted {
                return Ok(None);
            }
        }
    }
    publish(client, series).await.map(Some)
}

/// Ends what was submitted of a series that was not submitted whole; says what goes on nevertheless. A node that went away
/// is looked for: what it has goes on when it is back.
async fn withdraw(ctx: &Context, client: &Client, series: &Series) -> Option<String> {
    let mut deadline = Instant::now() + narrative::AWAY_LIMIT;
    let (mut left, mut told_away) = (Vec::new(), false);
    for execution in &series.executions {
        loop {
            let answer = ask_to_cancel(client, execution).await;
            let away = answer.as_ref().is_err_and(narrative::is_away) && !client.is_temporary();
            if !away || Instant::now() >= deadline {
                if !tell_cancelled(ctx, execution, answer) {
                    left.push(alias(execution));
                }
                break;
            }
            if !std::mem::replace(&mut told_away, true) {
                let limit = narrative::AWAY_LIMIT.as_secs();
                ctx.say(format!(
                    "… the node went away; what was submitted is withdrawn when it is back, within {limit} s"
                ));
            }
            tokio::select! {
                () = tokio::time::sleep(narrative::AWAY_PAUSE) => {}
                _ = tokio::signal::ctrl_c() => deadline = Instant::now(),
            }
        }
    }
    let count = ui::count(left.len() as u64, "execution");
    (!left.is_empty()).then(|| format!("{count} of the series could not be withdrawn: {}", left.join(", ")))
}

/// Stores a series, as far as it has come, and keeps it.
async fn publish(client: &Client, series: &Series) -> Result<Cid> {
    let block = model::to_block(series.clone());
    client.put(std::slice::from_ref(&block)).await?;
    let (root, kind) = (*block.cid(), "data".to_owned());
    client.call_all(Request::Publish { root, kind, name: "series".to_owned(), public: None }).await?;
    Ok(root)
}

/// Returns the series behind a CID, where the node has it and it is one.
pub async fn find(client: &Client, name: &str) -> Result<Option<(Cid, Series)>> {
    let Ok(cid) = name.parse::<Cid>() else { return Ok(None) };
    let block = match fetch::stored(client, &cid).await {
        Ok(block) => block,
        Err(error) if error.exit == Exit::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(match Node::from_bytes(block.data()) {
        Ok(Node::Series(series)) => Some((cid, series)),
        Ok(_) | Err(_) => None,
    })
}

/// Follows every execution of a series that has not ended, and ends with the CID that links what all left.
pub async fn follow(ctx: &Context, client: &Client, begun: &Cid, mut series: Series) -> Result {
    ctx.say(format!("series of {}", ui::count(series.executions.len() as u64, "execution")));
    let mut measured = Vec::new();
    let all = series.executions.len();
    for (n, execution) in series.executions.iter_mut().enumerate() {
        let mut last = None;
        if execution.verdict.is_none() && execution.failure.is_none() {
            let name = execution.execution.to_string();
            match narrative::follow(ctx, client, &name, Telling::Briefly, &mut last).await {
                Ok(Exit::Interrupted) => {
                    ctx.say("the other executions of the series go on too");
                    ctx.next(format!("iptl watch {begun}"));
                    return Ok(Exit::Interrupted);
                }
                Ok(_) => {}
                // What could not be started, or ended without a result, is a row of the table; anything else ends the command.
                Err(error) if !matches!(last, Some(Event::Failed { .. } | Event::Finished { .. })) => {
                    return Err(error);
                }
                Err(_) => {}
            }
        }
        measured.push(take_end(execution, last));
        tell(ctx, execution, n + 1, all);
    }
    let root = publish(client, &series).await?;
    if ctx.json {
        ctx.answer_json("series", to_json(&root, &series));
    } else {
        ctx.say(with_measured(&series, &measured).trim_end());
        ctx.say(summary(&series));
        answer(ctx, &root);
        ctx.next(format!("iptl show {root}"));
    }
    Ok(exit(&series))
}

/// Ends every execution of a series that has not ended.
pub async fn cancel(ctx: &Context, client: &Client, cid: &Cid, series: &Series) -> Result {
    let mut left = 0;
    for execution in &series.executions {
        left += u64::from(!cancel_one(ctx, client, execution).await);
    }
    if left > 0 {
        let message = format!("{} could not be cancelled", ui::count(left, "execution"));
        return Err(Error::broken("run.series", message, format!("try again: `iptl cancel {cid}`")));
    }
    ctx.next(format!("iptl watch {cid}"));
    Ok(Exit::Ok)
}

/// Ends an execution; returns whether nothing of it goes on.
async fn cancel_one(ctx: &Context, client: &Client, execution: &SeriesExecution) -> bool {
    let answer = ask_to_cancel(client, execution).await;
    tell_cancelled(ctx, execution, answer)
}

/// Has an execution ended; returns whether it was over.
async fn ask_to_cancel(client: &Client, execution: &SeriesExecution) -> Result<bool> {
    match client.call_one(Request::Cancel { execution: execution.execution.to_string() }).await? {
        Reply::Cancelled { over, .. } => Ok(over),
        other => Err(unexpected(&format!("{other:?}"))),
    }
}

/// Tells whether an execution was ended; returns whether nothing of it goes on.
fn tell_cancelled(ctx: &Context, execution: &SeriesExecution, answer: Result<bool>) -> bool {
    let alias = alias(execution);
    match answer {
        Ok(over) if ctx.json => {
            let body = json!({"execution": execution.execution.to_string(), "alias": alias, "over": over});
            ctx.answer_json("cancelled", body);
        }
        Ok(over) => {
            let said = if over { "was over" } else { "cancelled; what it has is being sealed" };
            ctx.say(format!("{alias}{} {said}", chosen(execution)));
        }
        Err(error) => {
            ctx.say(format!("{alias} goes on: {error}"));
            return false;
        }
    }
    true
}

/// Answers the CID of a series.
fn answer(ctx: &Context, root: &Cid) {
    let prefix = if std::io::IsTerminal::is_terminal(&std::io::stdout()) && !ctx.quiet { "series    " } else { "" };
    ctx.answer(format!("{prefix}{root}"));
}

/// Says what was submitted, and leaves it to itself.
fn submitted(ctx: &Context, begun: &Cid, series: &Series) -> Result {
    for execution in &series.executions {
        let (cid, alias) = (execution.execution, alias(execution));
        if ctx.json {
            let body = json!({
                "execution": cid.to_string(), "alias": alias, "run": execution.run.to_string(),
                "choices": execution.choices, "repetition": execution.repetition,
            });
            ctx.answer_json("submitted", body);
        } else {
            ctx.say(format!("submitted as {alias}{}", chosen(execution)));
        }
    }
    if ctx.json {
        ctx.answer_json("series", to_json(begun, series));
    } else {
        answer(ctx, begun);
        ctx.next(format!("iptl watch {begun}"));
    }
    Ok(Exit::Ok)
}

/// Takes the last event of an execution into the series; returns what thresholds measured.
fn take_end(execution: &mut SeriesExecution, last: Option<Event>) -> BTreeMap<String, Option<f64>> {
    match last {
        Some(Event::Finished { result, verdict, thresholds, failure, .. }) => {
            execution.result = Some(result);
            execution.verdict = Some(verdict);
            execution.failure = failure.map(|failure| failure.message);
            thresholds.into_iter().map(|(text, measured, _)| (text, measured)).collect()
        }
        Some(Event::Failed { failure, .. }) => {
            execution.failure = Some(failure.message);
            BTreeMap::new()
        }
        _ => BTreeMap::new(),
    }
}

fn tell(ctx: &Context, execution: &SeriesExecution, n: usize, all: usize) {
    if ctx.json {
        ctx.answer_json("execution", row_json(execution));
        return;
    }
    let why = execution.failure.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    ctx.say(format!("{n}/{all}  {}{}  {}{why}", alias(execution), chosen(execution), word(execution)));
}

fn alias(execution: &SeriesExecution) -> String {
    ExecutionId(execution.execution).alias()
}

fn chosen(execution: &SeriesExecution) -> String {
    execution.choices.iter().map(|(name, value)| format!("  {name}={value}")).collect()
}

fn word(execution: &SeriesExecution) -> &'static str {
    execution.verdict.map_or("no result", ResultVerdict::name)
}

/// Returns the table of a series: one line for each execution.
pub fn table(series: &Series) -> String {
    with_measured(series, &[])
}

fn with_measured(series: &Series, measured: &[BTreeMap<String, Option<f64>>]) -> String {
    let names: BTreeSet<&String> = series.executions.iter().flat_map(|execution| execution.choices.keys()).collect();
    let thresholds: BTreeSet<&String> = measured.iter().flat_map(BTreeMap::keys).collect();
    let mut head = vec!["EXECUTION".to_owned()];
    head.extend(names.iter().map(|name| name.to_uppercase()));
    head.extend(["NO".to_owned(), "VERDICT".to_owned()]);
    head.extend(thresholds.iter().map(ToString::to_string));
    head.push("RESULT".to_owned());
    let mut rows = vec![head];
    for (n, execution) in series.executions.iter().enumerate() {
        let mut row = vec![alias(execution)];
        row.extend(names.iter().map(|name| execution.choices.get(*name).cloned().unwrap_or_default()));
        row.extend([execution.repetition.to_string(), word(execution).to_owned()]);
        row.extend(thresholds.iter().map(|text| {
            let value = measured.get(n).and_then(|of| of.get(*text)).copied().flatten();
            value.map_or_else(|| "-".to_owned(), narrative::number)
        }));
        let why = || execution.failure.clone().unwrap_or_else(|| "-".to_owned());
        row.push(execution.result.map_or_else(why, |cid| cid.to_string()));
        rows.push(row);
    }
    ui::table(&rows)
}

/// Counts a series by verdict.
pub fn summary(series: &Series) -> String {
    let count = |verdict| series.executions.iter().filter(|execution| execution.verdict == verdict).count();
    format!(
        "{}: {} passed, {} failed, {} inconclusive, {} without a result",
        ui::count(series.executions.len() as u64, "execution"),
        count(Some(ResultVerdict::Pass)),
        count(Some(ResultVerdict::Fail)),
        count(Some(ResultVerdict::Inconclusive)),
        count(None)
    )
}

/// Returns the exit of a series: a failed test before a lab that could not, before one that cannot tell.
pub fn exit(series: &Series) -> Exit {
    let any = |verdict| series.executions.iter().any(|execution| execution.verdict == verdict);
    if any(Some(ResultVerdict::Fail)) {
        Exit::Failed
    } else if any(None) {
        Exit::LabUnable
    } else if any(Some(ResultVerdict::Inconclusive)) {
        Exit::Inconclusive
    } else {
        Exit::Ok
    }
}

fn row_json(execution: &SeriesExecution) -> Value {
    json!({
        "execution": execution.execution.to_string(), "alias": alias(execution), "run": execution.run.to_string(),
        "choices": execution.choices, "repetition": execution.repetition,
        "verdict": execution.verdict.map(ResultVerdict::name),
        "result": execution.result.map(|cid| cid.to_string()), "failure": execution.failure,
    })
}

fn to_json(cid: &Cid, series: &Series) -> Value {
    let rows: Vec<Value> = series.executions.iter().map(row_json).collect();
    json!({"series": cid.to_string(), "executions": rows})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(verdicts: &[Option<ResultVerdict>]) -> Series {
        let cid = model::to_block(Series { executions: Vec::new() }).cid().to_owned();
        let of = |verdict: &Option<ResultVerdict>| SeriesExecution {
            execution: cid,
            run: cid,
            choices: Choices::from([("rounds".to_owned(), "5".to_owned())]),
            repetition: 1,
            result: verdict.map(|_| cid),
            verdict: *verdict,
            failure: verdict.is_none().then(|| "no lablets".to_owned()),
        };
        Series { executions: verdicts.iter().map(of).collect() }
    }

    #[test]
    fn a_series_ends_as_the_worst_of_it() {
        use ResultVerdict::{Fail, Inconclusive, Pass};
        let rows = [
            (vec![Some(Pass), Some(Pass)], Exit::Ok),
            (vec![Some(Pass), Some(Inconclusive)], Exit::Inconclusive),
            (vec![Some(Inconclusive), None], Exit::LabUnable),
            (vec![None, Some(Fail), Some(Pass)], Exit::Failed),
        ];
        for (verdicts, expected) in rows {
            assert_eq!(exit(&series(&verdicts)).code(), expected.code(), "{verdicts:?}");
        }
    }

    #[test]
    fn every_value_meets_every_other_and_the_last_name_changes_fastest() {
        let matrix = [axis("a=1,2").unwrap(), axis("b=x,y").unwrap()];
        let all = combinations(&matrix, 1).unwrap_or_default();
        let said: Vec<String> = all.iter().map(|c| format!("{}{}", c["a"], c["b"])).collect();
        assert_eq!(said, ["1x", "1y", "2x", "2y"]);
        assert_eq!(combinations(&[], 3).unwrap_or_default(), [Choices::new()]);
    }

    #[test]
    fn what_is_no_matrix_is_refused() {
        for text in ["a", "=1,2", "a=", "a=1,,2", "a=1,1"] {
            assert!(axis(text).is_err(), "{text}");
        }
        let twice = [axis("a=1").unwrap(), axis("a=2").unwrap()];
        assert!(combinations(&twice, 1).is_err());
        assert!(combinations(&[axis("a=1,2,3").unwrap()], 334).is_err());
        assert!(combinations(&[axis("a=1,2,3").unwrap()], 333).is_ok());
        assert!(combinations(&[axis("a=1,2,3").unwrap()], u32::MAX).is_err());
    }

    #[test]
    fn the_table_has_a_column_for_each_choice_and_says_why_there_is_no_result() {
        let text = table(&series(&[Some(ResultVerdict::Pass), None]));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("ROUNDS") && lines[0].contains("VERDICT"), "{text}");
        assert!(
            lines[1].contains("pass") && lines[2].contains("no result") && lines[2].contains("no lablets"),
            "{text}"
        );
    }
}
