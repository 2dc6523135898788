//! `list`: the containers under a root.

use std::fs;
use std::path::Path;

use super::error::{Attempt, Error};
use super::log;
use super::state::{Container, Status};

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Table,
    Json,
    Ids,
}

pub(super) fn list(root: &Path, format: Format) -> Result<(), Error> {
    let mut containers = Vec::new();
    match fs::read_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        entries => {
            for entry in entries.attempt(|| format!("read {}", root.display()))? {
                let name = entry.attempt(|| format!("read {}", root.display()))?.file_name();
                let Some(id) = name.to_str() else { continue };
                match Container::load(root, id) {
                    Ok(container) => containers.push(container),
                    // Being created, or just deleted.
                    Err(Error::Missing(_)) => {}
                    Err(error) => log::warn(&format!("container {id} is left out: {}", error.chain())),
                }
            }
        }
    }
    containers.sort_by(|a, b| a.record.id.cmp(&b.record.id));
    if format == Format::Ids {
        containers.iter().for_each(|container| println!("{}", container.record.id));
        return Ok(());
    }
    let pid = |container: &Container, status| {
        if status == Status::Stopped { 0 } else { container.record.process.pid }
    };
    if format == Format::Json {
        let rows: Vec<_> = containers
            .iter()
            .map(|container| {
                let status = container.status();
                let mut row =
                    serde_json::to_value(container.document(status.name())).expect("string keys only");
                row["pid"] = pid(container, status).into();
                row["owner"] = owner(container.record.owner_uid).into();
                row
            })
            .collect();
        println!("{}", serde_json::Value::from(rows));
        return Ok(());
    }
    let rows: Vec<[String; 6]> = [["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)]
        .into_iter()
        .chain(containers.iter().map(|container| {
            let (record, status) = (&container.record, container.status());
            [
                record.id.clone(),
                pid(container, status).to_string(),
                status.name().to_owned(),
                record.bundle.display().to_string(),
                record.created.clone(),
                owner(record.owner_uid),
            ]
        }))
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    for row in &rows {
        let line: Vec<_> =
            row.iter().enumerate().map(|(at, cell)| format!("{cell:<0$}", width(at))).collect();
        println!("{}", line.join("   ").trim_end());
    }
    Ok(())
}

fn owner(uid: u32) -> String {
    if uid == 0 { "root".to_owned() } else { format!("#{uid}") }
}
