//! Lists the targets, or writes the inputs that one begins with into a directory: for the long run.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["list"] => {
            sluicegate_fuzz::targets().iter().for_each(|target| println!("{}", target.name));
            ExitCode::SUCCESS
        }
        ["seeds", name, directory] => match write_seeds(name, Path::new(directory)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("usage: sluicegate-fuzz list | sluicegate-fuzz seeds TARGET DIRECTORY");
            ExitCode::from(2)
        }
    }
}

fn write_seeds(name: &str, directory: &Path) -> Result<(), String> {
    let target = sluicegate_fuzz::target(name).ok_or_else(|| format!("there is no target `{name}`; `list` names them"))?;
    let failed = |error: std::io::Error| format!("the directory {} cannot be written to: {error}", directory.display());
    std::fs::create_dir_all(directory).map_err(failed)?;
    for (at, seed) in (target.seeds)().iter().enumerate() {
        std::fs::write(directory.join(format!("seed-{at:04}")), seed).map_err(failed)?;
    }
    Ok(())
}
